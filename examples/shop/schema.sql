CREATE TABLE products (
    id uuid PRIMARY KEY,
    rev bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL,
    name text NOT NULL,
    category text NOT NULL,
    price bigint NOT NULL,
    stock bigint NOT NULL CHECK (stock >= 0),
    refill bigint NOT NULL
);

CREATE TABLE orders (
    id uuid PRIMARY KEY,
    rev bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL,
    number bigint NOT NULL UNIQUE,
    customer text NOT NULL,
    product_id uuid NOT NULL REFERENCES products (id),
    quantity bigint NOT NULL,
    total bigint NOT NULL,
    status text NOT NULL,
    receipt text
);

CREATE INDEX orders_placed ON orders (created_at) WHERE status = 'placed';

-- One row, written by whoever makes the rounds; the fence refuses the late write of one who was paused.
CREATE TABLE sales (id bigint PRIMARY KEY, orders bigint NOT NULL, revenue bigint NOT NULL, fence bigint);
INSERT INTO sales VALUES (1, 0, 0, NULL);

-- The payment provider: whether it is up, and its own books. No key, so that a second charge would
-- be seen.
CREATE TABLE provider (up boolean NOT NULL);
INSERT INTO provider VALUES (true);
CREATE TABLE charges (order_id uuid NOT NULL, amount bigint NOT NULL);
