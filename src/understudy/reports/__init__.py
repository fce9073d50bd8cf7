"""Tables, figures and a page out of a run folder; nothing new is computed beyond aggregation."""
