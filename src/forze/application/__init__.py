"""The application layer: contracts, how they are wired and run, and what is built on them."""
