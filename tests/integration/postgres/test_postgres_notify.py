"""`test_notify` over PostgreSQL."""

import pytest
from test_notify import *  # noqa: F403

pytestmark = pytest.mark.integration
