"""The shop: a catalogue, orders, a worker that confirms them, a report."""
