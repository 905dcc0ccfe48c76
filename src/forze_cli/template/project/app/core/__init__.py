"""What the application stands on: settings, connections, and what is built on them."""
