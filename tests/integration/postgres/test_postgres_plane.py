"""`test_control_plane` over PostgreSQL."""

import pytest
from test_control_plane import *  # noqa: F403

pytestmark = pytest.mark.integration
