"""A short run of soak_serve.py, which make soak runs for an hour under the sanitizers."""
import unittest

from serving import Server
from soak_serve import Soak


class Short(unittest.TestCase):
    def test_many_clients(self):
        server = Server("--quiet", "--parallel", 8, "--queue", 64, "--cache-mb", 4)
        self.addCleanup(server.stop)
        self.assertEqual(Soak(server, total=300, clients=8, seed=2).run(), [])
        self.assertEqual(server.stop(), 0, "".join(server.log))
