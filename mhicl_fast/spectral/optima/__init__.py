"""What theory says about a task: states, optima, infima and the Bayes risk."""
