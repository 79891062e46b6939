"""Ways to route at equal compute: arms, courses of training, report."""
