"""How far patterns look back: plan, training on a task, accuracy by distance, report."""
