"""Who labels: a local model, a task's exact law, and noise laws around either."""
