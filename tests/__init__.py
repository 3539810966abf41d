import pytest

# Helpers whose asserts should show what differed.
pytest.register_assert_rewrite("tests.chaos.history")
