"""`test_admin_api` over PostgreSQL."""

import pytest
from test_admin_api import *  # noqa: F403

pytestmark = pytest.mark.integration
