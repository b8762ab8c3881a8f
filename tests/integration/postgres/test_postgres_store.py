"""`test_control_store` over PostgreSQL."""

import pytest
from test_control_store import *  # noqa: F403

pytestmark = pytest.mark.integration
