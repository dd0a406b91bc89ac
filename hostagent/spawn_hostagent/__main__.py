"""`python -m spawn_hostagent` is `spawn-host`."""

import sys

from spawn_hostagent.main import main

sys.exit(main())
