// Check, with kafkajs, what an operator can do to topics, groups and ACLs.
//
// BOOTSTRAP, a broker that takes anybody for an operator, and TOPIC, the name of a topic
// to be made, are in the environment. Prints each check that passes, and fails at the
// first that does not. What kafkajs logs as a warning or an error is on standard error.
"use strict";

const assert = require("node:assert/strict");
const { Kafka, AclOperationTypes, AclPermissionTypes, AclResourceTypes, ConfigResourceTypes, ResourcePatternTypes, logLevel } = require("kafkajs");

const topic = process.env.TOPIC;
const COUNT = 100; // records, all in the first partition

const kafka = new Kafka({
  brokers: process.env.BOOTSTRAP.split(","),
  logLevel: logLevel.WARN,
  logCreator: () => ({ log }) => console.error(log.message, log.error || ""),
});
const client = kafka.admin();

async function topics() {
  assert.equal(await client.createTopics({ topics: [{ topic, numPartitions: 2, replicationFactor: 1, configEntries: [{ name: "retention.ms", value: "3600000" }] }] }), true);
  await client.createPartitions({ topicPartitions: [{ topic, count: 3 }] });
  assert.equal((await client.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length, 3);
  const resource = { type: ConfigResourceTypes.TOPIC, name: topic };
  await client.alterConfigs({ resources: [{ ...resource, configEntries: [{ name: "retention.ms", value: "7200000" }] }] });
  const described = await client.describeConfigs({ resources: [{ ...resource, configNames: ["retention.ms"] }] });
  assert.deepEqual(described.resources[0].configEntries.map(({ configValue }) => configValue), ["7200000"]);
  assert.equal((await client.describeCluster()).clusterId, "diaspora");
}

async function records() {
  const producer = kafka.producer();
  await producer.connect();
  await producer.send({ topic, messages: Array.from({ length: COUNT }, (_, n) => ({ partition: 0, value: String(n) })) });
  await producer.disconnect();
  await client.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: "40" }] });
  const first = (await client.fetchTopicOffsets(topic)).find(({ partition }) => partition === 0);
  assert.deepEqual([first.low, first.high], ["40", String(COUNT)]);
}

async function groups() {
  const consumer = kafka.consumer({ groupId: topic });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  const first = await new Promise((resolve) => consumer.run({ eachMessage: async ({ message }) => resolve(message.offset) }));
  assert.equal(first, "40");
  const described = (await client.describeGroups([topic])).groups[0];
  assert.deepEqual([described.state, described.members.length], ["Stable", 1]);
  await consumer.disconnect();
  await client.deleteGroups([topic]);
  assert.ok(!(await client.listGroups()).groups.some(({ groupId }) => groupId === topic));
}

async function acls() {
  const acl = {
    resourceType: AclResourceTypes.TOPIC, resourceName: topic, resourcePatternType: ResourcePatternTypes.LITERAL,
    principal: "User:ada", host: "*", operation: AclOperationTypes.READ, permissionType: AclPermissionTypes.ALLOW,
  };
  const filter = { resourceType: AclResourceTypes.TOPIC, resourceName: topic, resourcePatternType: ResourcePatternTypes.LITERAL, operation: AclOperationTypes.ANY, permissionType: AclPermissionTypes.ANY };
  await client.createAcls({ acl: [acl] });
  assert.deepEqual((await client.describeAcls(filter)).resources[0].acls.map(({ principal }) => principal), ["User:ada"]);
  assert.equal((await client.deleteAcls({ filters: [filter] })).filterResponses[0].matchingAcls.length, 1);
  assert.equal((await client.describeAcls(filter)).resources.length, 0);
}

async function end() {
  await client.deleteTopics({ topics: [topic] });
  assert.ok(!(await client.listTopics()).includes(topic));
}

async function main() {
  await client.connect();
  for (const run of [topics, records, groups, acls, end]) {
    await run();
    console.log(run.name);
  }
  await client.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
