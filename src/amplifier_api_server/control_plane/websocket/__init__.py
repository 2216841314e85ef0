"""The WebSocket door, `/ws`: JSON messages in both directions, over the same operations as every other door."""
