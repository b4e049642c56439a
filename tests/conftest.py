"""One hypothesis profile for all tests: the same examples every time, and no deadline, because a test never times."""

from hypothesis import settings

settings.register_profile("lanewise", deadline=None, derandomize=True)
settings.load_profile("lanewise")
