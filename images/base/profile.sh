# Brings a tenant's variables into a login; spawn-entry wrote them down.
if [ -r /run/spawn/environment ]; then . /run/spawn/environment; fi
