"""Domain models: what documents, their reads and their commands are made of."""
