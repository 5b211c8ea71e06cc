from metarl.core.ssm import *
