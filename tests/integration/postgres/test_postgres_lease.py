"""`test_lease` over PostgreSQL."""

import pytest
from test_lease import *  # noqa: F403

pytestmark = pytest.mark.integration
