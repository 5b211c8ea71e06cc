"""What there is to adapt to. Importing this package registers the families that ship with it."""

from metarl.tasks import classic as classic
from metarl.tasks import drift as drift
from metarl.tasks import imujoco as imujoco
from metarl.tasks import locomotion as locomotion
from metarl.tasks import metaworld as metaworld
from metarl.tasks.registry import describe_tasks, list_tasks, make_tasks, register_tasks

__all__ = ["describe_tasks", "list_tasks", "make_tasks", "register_tasks"]
