"""From predictions to numbers: statistics, result tables, choices, published figures."""
