"""Says where a text lies in the data, and which steps of a run read it."""
