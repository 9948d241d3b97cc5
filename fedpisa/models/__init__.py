"""The networks by name; `fedpisa.families.models.build` makes them."""
