"""A Modbus server of another implementation: modbus_server.py PORT (socket|rtu)."""

import sys

from pymodbus.datastore import ModbusSequentialDataBlock as Block
from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext
from pymodbus.framer import FramerType
from pymodbus.server import StartTcpServer


def slave():
    return ModbusSlaveContext(
        co=Block(1, [0] * 100),
        di=Block(1, [1, 0, 1, 1] + [0] * 96),
        hr=Block(1, [5] + [0] * 99),
        ir=Block(1, [215, 0xFFFE, 0x41AA, 0x6666, 0x6865, 0x6C6C, 0x6F00] + [0] * 93),
    )


StartTcpServer(
    ModbusServerContext(slaves={1: slave(), 7: slave()}, single=False),
    address=("127.0.0.1", int(sys.argv[1])),
    framer=FramerType(sys.argv[2]),
)
