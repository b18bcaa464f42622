"""How large objects appear at train and at test time: formulas, and crops drawn by the transforms."""
