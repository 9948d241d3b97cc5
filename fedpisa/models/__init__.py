"""Networks; `fedpisa.families.models.build` builds one by its name."""
