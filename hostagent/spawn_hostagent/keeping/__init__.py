"""What may run now: leases by the service's clock, the owner's hours, strangers."""
