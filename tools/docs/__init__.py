"""Programs that write tables, figures and the reference of the documentation."""
