"""The kill campaign: runs are disturbed at drawn moments, and afterwards nothing of them may be left.

`ci/test-teardown` starts it; docs/explanation/kill-campaign.md tells what it kills when.
"""
