"""`test_rollout_driver` over PostgreSQL."""

import pytest
from test_rollout_driver import *  # noqa: F403

pytestmark = pytest.mark.integration
