"""The document read-through: ports, coordination, and the protocol that keeps reads fresh."""
