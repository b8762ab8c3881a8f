"""`test_control_properties` over PostgreSQL."""

import pytest
from test_control_properties import *  # noqa: F403

pytestmark = pytest.mark.integration
