from metarl.env_runner.environment import *
