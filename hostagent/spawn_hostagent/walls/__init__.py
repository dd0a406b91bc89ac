"""What stands between a tenant and the machine, each line with its reason, and whether it holds here."""
