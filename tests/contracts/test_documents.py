from forze.testing.batteries import *


class TestStore(StoreBehaviour): pass
class TestStoreFailures(StoreFailures): pass
class TestTx(TransactionBehaviour): pass
class TestTxFailures(TransactionFailures): pass
class TestDocuments(DocumentBehaviour): pass
class TestDocumentFailures(DocumentFailures): pass
