// Check, with kafkajs and an access key, what a client can ask of a broker.
//
// TOPIC, a topic of one's own that is empty and has two partitions, BOOTSTRAP, KEY_ID
// and KEY_SECRET are in the environment. Prints each check that passes, and fails at the
// first that does not. What kafkajs logs as a warning or an error is on standard error.
"use strict";

const assert = require("node:assert/strict");
const { Kafka, CompressionTypes, logLevel } = require("kafkajs");

const env = process.env;
const topic = env.TOPIC;
const COUNT = 100; // records in each partition, with each codec

const settings = {
  brokers: env.BOOTSTRAP.split(","),
  sasl: { mechanism: "plain", username: env.KEY_ID, password: env.KEY_SECRET },
  ssl: false,
  logLevel: logLevel.WARN,
  logCreator: () => ({ log }) => console.error(log.message, log.error || ""),
};
const kafka = new Kafka(settings);

const codecs = [CompressionTypes.None, CompressionTypes.GZIP]; // the others need modules of their own
const each = COUNT * codecs.length;

async function produce() {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 });
  await producer.connect();
  for (const compression of codecs) {
    const messages = [0, 1].flatMap((partition) =>
      Array.from({ length: COUNT }, (_, n) => ({ partition, key: String(n), value: `${compression} ${n}`, headers: { codec: String(compression) } }))
    );
    await producer.send({ topic, acks: -1, compression, messages });
  }
  await producer.disconnect();
}

// read reads in a group until it has count records.
async function read(groupId, count) {
  const consumer = kafka.consumer({ groupId });
  const records = [];
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await new Promise((resolve, reject) => {
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        records.push(`${partition} ${message.offset} ${message.value} ${message.headers.codec}`);
        if (records.length === count) resolve();
      },
    });
  });
  await consumer.disconnect(); // which commits
  return records.sort();
}

async function group() {
  const want = [0, 1].flatMap((p) => codecs.flatMap((c, i) => Array.from({ length: COUNT }, (_, n) => `${p} ${i * COUNT + n} ${c} ${n} ${c}`)));
  assert.deepEqual(await read(topic, 2 * each), want.sort());
}

const offsets = (list) => list.map(({ offset }) => Number(offset));

async function admin() {
  const client = kafka.admin();
  await client.connect();
  const committed = async (groupId) => offsets((await client.fetchOffsets({ groupId, topics: [topic] }))[0].partitions);
  assert.deepEqual(await committed(topic), [each, each]);
  assert.deepEqual(await committed(topic + "-new"), [-1, -1]);
  assert.deepEqual(offsets(await client.fetchTopicOffsets(topic)), [each, each]);
  assert.deepEqual(offsets(await client.fetchTopicOffsetsByTimestamp(topic, 1)), [0, 0]);
  await client.setOffsets({ groupId: topic, topic, partitions: [{ partition: 0, offset: "7" }] });
  assert.deepEqual(await committed(topic), [7, each]);
  await client.resetOffsets({ groupId: topic, topic, earliest: true });
  assert.ok((await client.listTopics()).includes(topic));
  assert.equal((await client.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length, 2);
  assert.ok((await client.listGroups()).groups.some(({ groupId }) => groupId === topic));
  assert.equal((await client.describeGroups([topic])).groups[0].state, "Empty");
  const described = await client.describeConfigs({ includeSynonyms: true, resources: [{ type: 2, name: topic }] });
  assert.ok(described.resources[0].configEntries.some(({ configName, configValue }) => configName === "message.timestamp.type" && configValue === "LogAppendTime"));
  await client.disconnect();
}

// refused fails unless kafkajs reports an error of the given type.
async function refused(type, action) {
  const types = ({ type, groups, partitions = [], errors = [] }) => [type, ...(groups || []).concat(partitions, errors).map((part) => types(part.error || part))].flat();
  await assert.rejects(action, (error) => types(error).concat(error.cause ? types(error.cause) : []).includes(type));
}

// refusals tries what takes an operator, or the ACL endpoint. kafkajs logs each as well.
async function refusals() {
  const client = new Kafka({ ...settings, logLevel: logLevel.NOTHING }).admin();
  await client.connect();
  await refused("TOPIC_AUTHORIZATION_FAILED", client.createTopics({ topics: [{ topic: topic + "-mine" }] }));
  await refused("TOPIC_AUTHORIZATION_FAILED", client.deleteTopics({ topics: [topic] }));
  await refused("TOPIC_AUTHORIZATION_FAILED", client.createPartitions({ topicPartitions: [{ topic, count: 3 }] }));
  await client.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: "1" }] }); // its own, and so is the group
  assert.equal(Number((await client.fetchTopicOffsets(topic)).find(({ partition }) => partition === 0).low), 1);
  assert.equal((await client.deleteGroups([topic]))[0].errorCode, 0);
  await client.disconnect();
}

async function main() {
  for (const run of [produce, group, admin, refusals]) {
    await run();
    console.log(run.name);
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
