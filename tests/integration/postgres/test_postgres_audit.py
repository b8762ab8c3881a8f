"""`test_audit` over PostgreSQL."""

import pytest
from test_audit import *  # noqa: F403

pytestmark = pytest.mark.integration
