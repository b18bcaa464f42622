"""From predictions to numbers: statistics, result tables, choices, answers, costs."""
