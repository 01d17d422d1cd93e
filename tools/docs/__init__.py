"""What of the documentation a program writes: tables, figures, reference."""
