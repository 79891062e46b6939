"""Models read at longer contexts than they were trained at: methods, plan, evaluation, report."""
