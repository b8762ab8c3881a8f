"""`test_rollout_api` over PostgreSQL."""

import pytest
from test_rollout_api import *  # noqa: F403

pytestmark = pytest.mark.integration
