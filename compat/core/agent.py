from metarl.core.agent import *
