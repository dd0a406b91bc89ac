"""What the commands and the daemon say instead of a traceback.

Invariant: a failure is one sentence for the owner of the machine, with what to do next; it holds no secret.
"""


class Failure(Exception):
    """What was asked for was not done; the message is for the owner, as it stands."""
