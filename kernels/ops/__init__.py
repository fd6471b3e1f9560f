"""The ops: formula, reference, fake, gradient and public function, one op a file. None imports a backend."""
