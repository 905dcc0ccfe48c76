"""What is built on the contracts: the document read-through."""
