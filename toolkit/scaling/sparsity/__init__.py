"""Dense against sparse at equal compute: a search for rates, laws of the grid, a prediction and its test, report."""
