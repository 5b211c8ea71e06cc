from metarl.meta_rl.meta_maml import *
