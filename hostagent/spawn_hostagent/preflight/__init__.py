"""Whether a machine is fit for tenants: judged purely, looked at elsewhere."""
