from metarl.meta_rl.maml_agent import *
