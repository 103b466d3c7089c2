"""The normal form: rewrites that bring the graphs of different exporters into one form, exact up to rounding."""
